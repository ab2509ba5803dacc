"""The intermediate representation: expressions with named axes, programs of streamed regions, and their meaning."""
