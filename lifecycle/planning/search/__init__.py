"""The search for a mesh, micro-batch and rematerialisation: candidates, arithmetic, the compiler, reasons."""
