//! Filters that trap, spin and hoard: what it costs the exchange at hand, and nobody else.
