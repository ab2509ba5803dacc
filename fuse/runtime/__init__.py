"""What runs after compilation: executables, the library ops that call them, and what Inductor is told about them."""
