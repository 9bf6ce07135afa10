"""The content of messages: header fields, MIME parts and signatures, and what is wrong with them."""
