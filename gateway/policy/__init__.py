"""Policy files in, decisions out. Reads files, but calls nobody and keeps no clock."""
