"""Published results, one file each; each figure is remade by the command in its docstring."""
