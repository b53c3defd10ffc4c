//! Who is let in, as whom.
