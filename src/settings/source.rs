//! Reading values by their names: from the environment, and where it has none from
//! the file.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use super::names::{NAMES, OTHER};

/// A value that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: read {read:?}, takes {takes}")]
pub struct BadSetting {
    /// The variable.
    pub name: String,
    /// What was read; secrets are not repeated.
    pub read: String,
    /// What is allowed.
    pub takes: String,
}

/// Reads names from the environment and the file.
pub(super) struct Source {
    file: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
}

impl Source {
    /// These variables, and the file that they name.
    pub(super) fn of(vars: impl Iterator<Item = (String, String)>) -> Result<Self, BadSetting> {
        let env: BTreeMap<String, String> = vars
            .filter_map(|(k, v)| Some((k.strip_prefix("ONERING_")?.to_owned(), v)))
            .collect();
        let file = match env.get("CONFIG") {
            Some(path) => read_file(path)?,
            None => BTreeMap::new(),
        };
        Ok(Self { file, env })
    }

    /// Variables of ours that mean nothing.
    pub(super) fn unknown(&self) -> Vec<String> {
        self.env
            .keys()
            .filter(|k| !NAMES.iter().any(|(n, ..)| n == k))
            .filter(|k| !OTHER.contains(&k.as_str()) && !k.starts_with("TEST_"))
            .map(|k| format!("ONERING_{k}"))
            .collect()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.env
            .get(name)
            .or_else(|| self.file.get(&name.to_lowercase()))
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    pub(super) fn get<T>(
        &self,
        name: &str,
        takes: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, BadSetting> {
        self.text(name)
            .map(|text| {
                parse(text.trim()).ok_or_else(|| BadSetting {
                    name: format!("ONERING_{name}"),
                    // A URL may hold a password.
                    read: if text.contains('@') {
                        "(not shown)".to_owned()
                    } else {
                        text.to_owned()
                    },
                    takes: takes.to_owned(),
                })
            })
            .transpose()
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, BadSetting> {
        self.get(name, "0, 1, true or false", |v| match v {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        })
    }

    pub(super) fn number<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &self,
        name: &str,
        default: T,
        least: T,
        most: T,
    ) -> Result<T, BadSetting> {
        let takes = format!("a number from {least} to {most}");
        Ok(self
            .get(name, &takes, |v| {
                v.parse().ok().filter(|n| *n >= least && *n <= most)
            })?
            .unwrap_or(default))
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }
}

fn read_file(path: &str) -> Result<BTreeMap<String, String>, BadSetting> {
    let bad = |takes: String| BadSetting {
        name: "ONERING_CONFIG".into(),
        read: path.to_owned(),
        takes,
    };
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("a readable file ({e})")))?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| bad(format!("a TOML file ({})", e.message())))?;
    table
        .into_iter()
        .map(|(name, value)| {
            if !NAMES.iter().any(|(n, ..)| n.to_lowercase() == name) {
                return Err(bad(format!("known names only (`{name}` is not one)")));
            }
            let plain = |value: &toml::Value| match value {
                toml::Value::String(s) => Some(s.clone()),
                toml::Value::Integer(n) => Some(n.to_string()),
                toml::Value::Boolean(b) => Some(b.to_string()),
                _ => None,
            };
            let text = match &value {
                toml::Value::Array(list) => list
                    .iter()
                    .map(plain)
                    .collect::<Option<Vec<_>>>()
                    .map(|l| l.join(",")),
                value => plain(value),
            };
            let text = text.ok_or_else(|| bad(format!("`{name}` as text, a number or a list")))?;
            Ok((name, text))
        })
        .collect()
}
