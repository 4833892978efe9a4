//! Which paths the store takes, and how they lie to each other.
//!
//! Source: `docs/misc/xenstore.txt` and `io/xs_wire.h` (RELEASE-4.17): letters, digits and `-/_@`; no
//! doubled slash, none at the end; at most [`ABSOLUTE_MAX`] bytes when absolute and [`RELATIVE_MAX`]
//! when relative to a domain's home.

use alloc::format;
use alloc::string::String;

use crate::DomId;

/// The most bytes in an absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABSOLUTE_MAX: usize = 3072;
/// The most bytes in a relative path (`XENSTORE_REL_PATH_MAX`).
pub const RELATIVE_MAX: usize = 2048;

/// Where a domain's relative paths begin.
#[must_use]
pub fn home(domain: DomId) -> String {
    format!("/local/domain/{domain}")
}

/// The absolute form of a node's path as `domain` wrote it; `None` where it is no legal path.
#[must_use]
pub fn absolute(text: &[u8], domain: DomId) -> Option<String> {
    let path = core::str::from_utf8(text).ok()?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    if path.is_empty() || !path.bytes().all(legal) || path.contains("//") {
        return None;
    }
    if path == "/" {
        return Some(String::from(path));
    }
    if path.ends_with('/') || path.starts_with('@') {
        return None;
    }
    if path.starts_with('/') {
        (path.len() <= ABSOLUTE_MAX).then(|| String::from(path))
    } else {
        (path.len() <= RELATIVE_MAX).then(|| format!("{}/{path}", home(domain)))
    }
}

/// Whether `text` names a special watch rather than a node, and is legal as one.
#[must_use]
pub fn special(text: &[u8]) -> Option<&str> {
    let path = core::str::from_utf8(text).ok()?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    (path.starts_with('@') && path.len() <= RELATIVE_MAX && path.bytes().all(legal)).then_some(path)
}

/// The parent of an absolute path; `None` for the root.
#[must_use]
pub fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/')? {
        (_, "") => None,
        ("", _) => Some("/"),
        (parent, _) => Some(parent),
    }
}

/// Whether `path` is `above` or lies below it.
#[must_use]
pub fn is_within(path: &str, above: &str) -> bool {
    if above == "/" {
        return path.starts_with('/');
    }
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The names from the root down to the node of an absolute path.
pub(crate) fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_7(text: &str) -> Option<String> {
        absolute(text.as_bytes(), DomId::new(7).unwrap())
    }

    #[test]
    fn takes_what_the_specification_allows_and_nothing_else() {
        assert_eq!(of_7("/").as_deref(), Some("/"));
        assert_eq!(of_7("/a/B-9_@x").as_deref(), Some("/a/B-9_@x"));
        assert_eq!(of_7("device/vbd").as_deref(), Some("/local/domain/7/device/vbd"));
        for bad in ["", "//", "/a//b", "/a/", "a/", "/a b", "/a.b", "/\u{e9}", "@x", "/a\0"] {
            assert_eq!(of_7(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn limits_are_those_of_the_header() {
        assert!(of_7(&format!("/{}", "a".repeat(3071))).is_some());
        assert!(of_7(&format!("/{}", "a".repeat(3072))).is_none());
        assert!(of_7(&"a".repeat(2048)).is_some());
        assert!(of_7(&"a".repeat(2049)).is_none());
    }

    #[test]
    fn knows_parents_and_what_is_within() {
        assert_eq!(parent("/"), None);
        assert_eq!(parent("/a"), Some("/"));
        assert_eq!(parent("/a/b"), Some("/a"));
        assert!(is_within("/a/b", "/a"));
        assert!(is_within("/a", "/a"));
        assert!(is_within("/a", "/"));
        assert!(!is_within("/ab", "/a"));
        assert!(!is_within("@x", "/"));
        assert!(is_within("@x", "@x"));
    }
}
