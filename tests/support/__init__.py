"""What the tests share: real processes, a REST client, data to move."""
