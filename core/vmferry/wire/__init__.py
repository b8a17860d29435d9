"""What goes over a connection: messages, extents, the link with its lanes and heartbeat."""
