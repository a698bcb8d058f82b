"""The pure core: values in, values out; no await, no clock, no chance, no input or output."""
