//! Which fields an update changes (AIP-134, AIP-161).

use prost_types::FieldMask;

use super::check::{Faults, echo};

/// A field that an update can't change. A client that reads, edits and writes
/// back a whole resource names these too, which is fine as long as they are as
/// they were.
pub(super) struct Fixed {
    name: &'static str,
    set: bool,
    same: bool,
}

impl Fixed {
    /// A field with the value that was given for it and the one that it has.
    pub(super) fn new<T: PartialEq + Default>(name: &'static str, given: &T, now: &T) -> Self {
        Self {
            name,
            set: *given != T::default(),
            same: given == now,
        }
    }

    /// A field that the server may change between a read and the write back:
    /// whatever is given for it means nothing.
    pub(super) const fn moving(name: &'static str) -> Self {
        Self {
            name,
            set: false,
            same: true,
        }
    }

    fn check(&self, faults: &mut Faults) {
        if !self.same {
            faults.add(
                self.name,
                "is set by the server and can't be changed like this",
            );
        }
    }
}

/// The fields to change: those that the mask names, all for `*`, and where it
/// names none, those that are set.
pub(super) fn changed(
    mask: Option<&FieldMask>,
    changeable: &[&'static str],
    set: impl Fn(&str) -> bool,
    fixed: &[Fixed],
    faults: &mut Faults,
) -> Vec<&'static str> {
    let paths = mask.map_or(&[][..], |m| &m.paths);
    let all = paths.iter().any(|p| p == "*");
    if all || paths.is_empty() {
        for field in fixed.iter().filter(|f| f.set) {
            field.check(faults);
        }
        let changed = changeable.iter().copied();
        return changed.filter(|name| all || set(name)).collect();
    }
    let mut names = Vec::with_capacity(paths.len().min(changeable.len()));
    for path in paths {
        if let Some(name) = changeable.iter().find(|name| *name == path) {
            if !names.contains(name) {
                names.push(*name);
            }
        } else if let Some(field) = fixed.iter().find(|f| f.name == path) {
            field.check(faults);
        } else {
            let known = changeable.join(", ");
            faults.add_outside(
                "update_mask",
                format!("`{}` can't be changed; there are {known}", echo(path)),
            );
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn run(paths: Option<&[&str]>, id: &str) -> Result<Vec<&'static str>, Error> {
        let mask = paths.map(|paths| FieldMask {
            paths: paths.iter().map(|p| (*p).to_owned()).collect(),
        });
        let mut faults = Faults::under("key.");
        let fixed = [
            Fixed::new("id", &id.to_owned(), &"a".to_owned()),
            Fixed::moving("used"),
        ];
        let set = |name: &str| name == "tier";
        let names = changed(mask.as_ref(), &["name", "tier"], set, &fixed, &mut faults);
        faults.done().map(|()| names)
    }

    #[test]
    fn a_mask_says_what_to_change() {
        assert_eq!(run(Some(&["name", "name"]), "").unwrap(), ["name"]);
        assert_eq!(run(Some(&["*"]), "").unwrap(), ["name", "tier"]);
    }

    #[test]
    fn without_one_it_is_what_is_set() {
        assert_eq!(run(None, "").unwrap(), ["tier"]);
        assert_eq!(run(Some(&[]), "a").unwrap(), ["tier"]);
        assert_eq!(run(None, "b").unwrap_err().violations[0].field, "key.id");
    }

    #[test]
    fn what_the_server_sets_may_be_repeated_not_changed() {
        assert_eq!(run(Some(&["id", "used", "name"]), "a").unwrap(), ["name"]);
        for other in ["", "b"] {
            let error = run(Some(&["id"]), other).unwrap_err();
            assert_eq!(error.violations[0].field, "key.id");
        }
    }

    #[test]
    fn an_unknown_path_is_named() {
        for path in ["nam", "metadata.x", ""] {
            let error = run(Some(&[path]), "a").unwrap_err();
            assert_eq!(error.violations[0].field, "update_mask");
            assert!(error.detail.contains(&format!("`{path}`")));
        }
    }
}
