"""What depends on the database: the embedded server, the two engines, the schema and its migrations."""
