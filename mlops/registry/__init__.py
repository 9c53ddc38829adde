"""What is champion, challenger, staged and archived, and the gate between them."""
