//! Pages of lists, newest first. A page's token is the last id that was on it.

use std::{fmt::Display, str::FromStr};

use super::check::Faults;
use crate::{error::Result, store::Page};

const DEFAULT: i32 = 50;
const MOST: i32 = 1000;

/// Reads which page is asked for. Its limit is one more than goes onto the
/// page: that one says whether there is another page.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub(super) fn read<Id: FromStr>(page_size: i32, page_token: &str) -> Result<Page<Id>> {
    let mut faults = Faults::default();
    let size = match page_size {
        0 => DEFAULT,
        n => n.min(MOST),
    };
    if size < 0 {
        faults.add("page_size", "must not be negative");
    }
    let before = match page_token {
        "" => None,
        token => token.parse().ok(),
    };
    if before.is_none() && !page_token.is_empty() {
        faults.add("page_token", "is not the `next_page_token` of an answer");
    }
    faults.done()?;
    Ok(Page {
        before,
        limit: i64::from(size) + 1,
    })
}

/// Cuts rows to a page; the token of the next one, empty where there is none.
pub(super) fn cut<Id, T, I: Display>(
    page: &Page<Id>,
    rows: &mut Vec<T>,
    id: impl Fn(&T) -> I,
) -> String {
    let size = usize::try_from(page.limit - 1).unwrap_or_default();
    if rows.len() <= size {
        return String::new();
    }
    rows.truncate(size);
    rows.last()
        .map(|row| id(row).to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::KeyId;

    #[test]
    fn sizes() {
        for (asked, limit) in [(0, 51), (1, 2), (1000, 1001), (i32::MAX, 1001)] {
            assert_eq!(read::<KeyId>(asked, "").unwrap().limit, limit);
        }
        let error = read::<KeyId>(-1, "x").unwrap_err();
        let fields: Vec<_> = error.violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["page_size", "page_token"]);
    }

    #[test]
    fn only_a_page_with_another_behind_it_has_a_token() {
        let page = read::<KeyId>(2, "").unwrap();
        let mut rows = vec![3, 2];
        assert_eq!(cut(&page, &mut rows, |n| *n), "");
        let mut rows = vec![3, 2, 1];
        assert_eq!(cut(&page, &mut rows, |n| *n), "2");
        assert_eq!(rows, [3, 2]);
    }
}
