"""What is stored and declared: events, ids, errors, resources, definitions, tables. Values only."""
