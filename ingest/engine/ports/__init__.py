"""The sockets of a worker: frames in, acks out; requests in, runs of frames out."""
