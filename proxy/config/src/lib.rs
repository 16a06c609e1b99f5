//! The configuration as written: YAML with positions, checked, with every fault reported together.
