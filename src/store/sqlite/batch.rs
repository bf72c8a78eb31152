//! Statements over many rows. Their row counts are of a few sizes, so that a few
//! texts serve every batch and stay prepared.

use std::{ops::Range, sync::OnceLock};

/// The sizes: most batches are one or two pieces, for each piece is a message to
/// the database's thread and back.
const SIZES: [usize; 20] = [
    1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192,
];

/// Which size is the largest for so many rows.
fn largest(rows: usize) -> usize {
    SIZES
        .partition_point(|size| *size <= rows)
        .saturating_sub(1)
}

/// A statement whose text repeats a part for each of its rows. Parameters are
/// plain `?`: numbered ones are looked up by name, one after another, each time.
pub(super) struct Batch {
    head: &'static str,
    row: &'static str,
    between: &'static str,
    tail: &'static str,
    texts: [OnceLock<String>; SIZES.len()],
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
            texts: [const { OnceLock::new() }; SIZES.len()],
        }
    }

    /// The text for a piece of [`pieces`].
    pub(super) fn text(&'static self, piece: &Range<usize>) -> &'static str {
        let rows = piece.len();
        self.texts[largest(rows)].get_or_init(|| {
            let rows = vec![self.row; rows].join(self.between);
            format!("{}{rows}{}", self.head, self.tail)
        })
    }
}

/// Splits rows into pieces of those sizes, the largest first.
pub(super) fn pieces(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let left = rows - from;
        if left == 0 {
            return None;
        }
        let size = SIZES[largest(left)];
        from += size;
        Some(from - size..from)
    })
}
