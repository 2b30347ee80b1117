//! What COPY, ADD and bind mounts take of a context: paths and patterns to entries, and entries to one digest.

use std::collections::BTreeSet;

use super::{Context, ContextError, Entry, Kind, shown};
use crate::builder::glob;
use crate::builder::ignore::Ignore;
use crate::image::digest::{Digest, Hasher};

/// Most links that lead from one path to another.
const LINKS_MAX: usize = 40;

/// Paths of a context, in the order of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    paths: BTreeSet<Vec<u8>>,
}

/// One thing that a source of COPY stands for.
#[derive(Clone, Debug)]
pub struct Picked {
    /// Its path as it was found, before links.
    pub name: Vec<u8>,
    /// Its path behind all links.
    pub root: Vec<u8>,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// All that is in it, and itself.
    pub paths: Selection,
}

/// Why nothing can be selected.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// There is no such path.
    #[error(
        "`{pattern}` is not in the context\nhint: paths are relative to the root of the context; is it left out by .dockerignore?"
    )]
    Missing {
        /// The path or pattern.
        pattern: String,
    },
    /// The pattern is none.
    #[error("the pattern `{pattern}` {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Links lead nowhere.
    #[error("the links of `{path}` lead round in a circle")]
    Circle {
        /// The path.
        path: String,
    },
    /// A pipe, socket or device.
    #[error("`{path}` is neither file, folder nor link\nhint: leave it out, in .dockerignore")]
    Special {
        /// The path.
        path: String,
    },
}

impl Selection {
    /// The paths.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.paths.iter().map(Vec::as_slice)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

impl Context {
    /// What a source of COPY stands for: a path, or a pattern as Go's `path.Match`; folders with all that is in them.
    /// `..` stays at the root. What `exclude` matches is left out, relative to the source.
    ///
    /// # Errors
    /// A path that is not there, a pattern that is none, links in a circle, something that cannot be copied.
    pub fn select(&self, source: &str, exclude: &Ignore) -> Result<Selection, SelectError> {
        let path = glob::clean(&format!("/{source}"));
        let path = path.trim_start_matches('/');
        let mut found = Selection::default();
        for root in self.roots(path)? {
            let root = self.resolve(&root)?;
            self.add_below(&root, exclude, &mut found)?;
        }
        Ok(found)
    }

    /// What a source of COPY stands for, one by one, each with all that is in it. As `select` otherwise.
    ///
    /// # Errors
    /// As `select`.
    pub fn pick(&self, source: &str, exclude: &Ignore) -> Result<Vec<Picked>, SelectError> {
        let path = glob::clean(&format!("/{source}"));
        let path = path.trim_matches('/');
        let mut picked = Vec::new();
        for name in self.roots(path)? {
            let root = self.resolve(&name)?;
            let mut found = Selection::default();
            self.add_below(&root, exclude, &mut found)?;
            let is_folder = root.is_empty() || self.entries.get(&root).is_some_and(|entry| entry.kind == Kind::Folder);
            picked.push(Picked { name, root, is_folder, paths: found });
        }
        Ok(picked)
    }

    /// The entries that a pattern stands for, without what is in them.
    fn roots(&self, pattern: &str) -> Result<Vec<Vec<u8>>, SelectError> {
        if !glob::is_pattern(pattern) {
            return Ok(vec![pattern.as_bytes().to_vec()]);
        }
        glob::check(pattern).map_err(|problem| SelectError::Pattern { pattern: pattern.to_owned(), problem })?;
        let parts: Vec<&str> = pattern.split('/').collect();
        let fits = |path: &[u8]| {
            let path = String::from_utf8_lossy(path);
            path.split('/').count() == parts.len()
                && path.split('/').zip(&parts).all(|(name, part)| glob::matches(part, name))
        };
        let roots: Vec<Vec<u8>> = self.entries.keys().filter(|path| fits(path)).cloned().collect();
        if roots.is_empty() {
            return Err(SelectError::Missing { pattern: pattern.to_owned() });
        }
        Ok(roots)
    }

    /// Follows links, as if the root of the context were that of a file system.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, SelectError> {
        let mut rest: Vec<Vec<u8>> = names(path).rev().map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            done.push(name);
            match self.entries.get(&done.join(&b'/')) {
                Some(Entry { kind: Kind::Link { target }, .. }) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(SelectError::Circle { path: shown(path) });
                    }
                    done.pop();
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    rest.extend(names(target).rev().map(<[u8]>::to_vec));
                }
                Some(_) => {}
                None => return Err(SelectError::Missing { pattern: shown(path) }),
            }
        }
        Ok(done.join(&b'/'))
    }

    fn add_below(&self, root: &[u8], exclude: &Ignore, found: &mut Selection) -> Result<(), SelectError> {
        let prefix = if root.is_empty() { Vec::new() } else { [root, b"/"].concat() };
        let below = self.entries.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let itself = self.entries.get_key_value(root);
        for (path, entry) in itself.into_iter().chain(below) {
            let relative = path.strip_prefix(prefix.as_slice()).unwrap_or_else(|| last_name(root));
            if exclude.excludes(&String::from_utf8_lossy(relative)) {
                continue;
            }
            if entry.kind == Kind::Special {
                return Err(SelectError::Special { path: shown(path) });
            }
            found.paths.insert(path.clone());
        }
        Ok(())
    }

    /// One digest over what is selected: paths, kinds, modes and contents; no owners and no times.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn digest_of(&self, selection: &Selection) -> Result<Digest, ContextError> {
        let mut hasher = Hasher::default();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for path in selection.paths() {
            let Some(entry) = self.entries.get(path) else { continue };
            field(path);
            field(&entry.mode.to_le_bytes());
            match &entry.kind {
                Kind::File => {
                    field(b"file");
                    field(self.digest(path)?.hex().as_bytes());
                }
                Kind::Folder => field(b"folder"),
                Kind::Special => field(b"special"),
                Kind::Link { target } => {
                    field(b"link");
                    field(target);
                }
            }
        }
        Ok(hasher.finish())
    }
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

fn last_name(path: &[u8]) -> &[u8] {
    names(path).next_back().unwrap_or_default()
}
