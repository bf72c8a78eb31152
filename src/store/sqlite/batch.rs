//! Statements over many rows. Their row counts are powers of two, so that a few
//! texts serve every batch and stay prepared.

use std::{ops::Range, sync::OnceLock};

/// The most rows of one statement, as a power of two.
const LARGEST: usize = 7;

/// A statement whose text repeats a part for each of its rows. Parameters are
/// plain `?`: numbered ones are looked up by name, one after another, each time.
pub(super) struct Batch {
    head: &'static str,
    row: &'static str,
    between: &'static str,
    tail: &'static str,
    texts: [OnceLock<String>; LARGEST + 1],
}

impl Batch {
    /// Rows of a `values` list.
    pub(super) const fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        Self::joined(head, row, ",", tail)
    }

    /// Rows with that text between them.
    pub(super) const fn joined(
        head: &'static str,
        row: &'static str,
        between: &'static str,
        tail: &'static str,
    ) -> Self {
        Self {
            head,
            row,
            between,
            tail,
            texts: [const { OnceLock::new() }; LARGEST + 1],
        }
    }

    /// The text for a piece of [`pieces`].
    pub(super) fn text(&'static self, piece: &Range<usize>) -> &'static str {
        let rows = piece.len();
        let at = (rows.trailing_zeros() as usize).min(LARGEST);
        self.texts[at].get_or_init(|| {
            let rows = vec![self.row; rows].join(self.between);
            format!("{}{rows}{}", self.head, self.tail)
        })
    }
}

/// Splits rows into pieces whose sizes are powers of two, the largest first.
pub(super) fn pieces(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let left = rows - from;
        let size = 1 << left.checked_ilog2()?.min(LARGEST as u32);
        from += size;
        Some(from - size..from)
    })
}
