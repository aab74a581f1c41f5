"""What a certificate is made from."""
