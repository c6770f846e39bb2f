"""Files, batches, and forms with files in them: what is relayed without being held in memory, and what upstreams keep for us."""
