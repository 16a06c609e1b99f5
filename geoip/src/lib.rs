//! MaxMind DB reading: memory mapped, hot swapped, with a generator for test databases.
