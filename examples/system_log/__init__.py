"""A system log through a broker that is killed on the way: is every line there in the end? See README.md."""
