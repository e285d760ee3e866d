"""Makes a table of the documents anew, from nothing but a checkout: the data, the commands, the table."""
