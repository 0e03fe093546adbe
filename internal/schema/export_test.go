package schema

// ReadIn is Read within a transaction that may have changed something.
var ReadIn = readIn
