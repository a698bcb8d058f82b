"""The objects that users build a pipeline of: tasks, repositories, quotas, sessions, and their definition."""
