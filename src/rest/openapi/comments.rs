//! The comments of the proto files.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, FileDescriptor};

/// The comment in front of each element, by file and path.
pub(super) struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    /// Reads the source information that is in the descriptors.
    pub(super) fn new(pool: &DescriptorPool) -> Self {
        let mut comments = HashMap::new();
        for file in pool.files() {
            let source = file.file_descriptor_proto().source_code_info.as_ref();
            for location in source.map(|s| s.location.as_slice()).unwrap_or_default() {
                let text = location.leading_comments();
                if !text.is_empty() {
                    let key = (file.name().to_owned(), location.path.clone());
                    comments.insert(key, joined(text));
                }
            }
        }
        Self(comments)
    }

    /// The comment of an element; empty where it has none.
    pub(super) fn get(&self, file: &FileDescriptor, path: &[i32]) -> &str {
        let key = (file.name().to_owned(), path.to_vec());
        self.0.get(&key).map_or("", String::as_str)
    }
}

/// Lines belong together; an empty one ends a paragraph.
fn joined(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.trim().lines().map(str::trim) {
        if line.is_empty() {
            out.push_str("\n\n");
        } else {
            if !out.is_empty() && !out.ends_with('\n') {
                out.push(' ');
            }
            out.push_str(line);
        }
    }
    out
}
