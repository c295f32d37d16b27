"""Connect: the contract over plain HTTP, one reply or a stream of them."""
