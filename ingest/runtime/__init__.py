"""What any process of ours needs: how it starts, is watched and ends, its sockets, its log, its key file."""
