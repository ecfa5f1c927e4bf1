"""The provider's calls as its clients spell them: what the replay and Candlewick's own API both read and write."""
