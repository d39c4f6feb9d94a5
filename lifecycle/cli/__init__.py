"""`lifecycle VERB CONFIG [key=value ...]`: a file for each verb."""
