//! `.dockerignore` against the docker command line, version 28.2.2: `ignore.json` holds what it sent of a tree for each
//! file, folders included, taken once with a server that kept the names in the tar of `docker build`. Two habits of its
//! own are left out, since BuildKit has others: it does not look into folders that an exception with a wildcard in front
//! might reach, and it does not send folders that are there only because something in them was taken back.

use std::fs;

use ampoule_engine::builder::context::{Context, Limits};
use ampoule_engine::builder::ignore::Ignore;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Truth {
    tree: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ignore: String,
    /// Nothing when the pattern was refused.
    sent: Option<Vec<String>>,
}

fn tree(paths: &[String]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for path in paths {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, "x").expect("a file");
    }
    folder
}

fn listed(context: &Context) -> Vec<String> {
    context.entries().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect()
}

#[test]
fn what_is_left_out_is_what_the_docker_command_leaves_out() {
    let truth: Truth = serde_json::from_str(include_str!("ignore.json")).expect("ignore.json");
    assert!(truth.cases.len() > 80);
    let folder = tree(&truth.tree);
    let mut wrong = Vec::new();
    for case in truth.cases {
        let made = Ignore::parse(&case.ignore).ok().map(|ignored| {
            let context = Context::open(folder.path(), ignored.clone(), Limits::default()).expect("a context");
            listed(&context).into_iter().filter(|path| !ignored.excludes(path)).collect::<Vec<_>>()
        });
        let mut expected = case.sent.clone();
        if let Some(names) = &mut expected {
            names.sort();
        }
        if made != expected {
            let both = (made.unwrap_or_default(), expected.unwrap_or_default());
            let only = |one: &[String], other: &[String]| -> Vec<String> {
                one.iter().filter(|name| !other.contains(name)).cloned().collect()
            };
            wrong.push(format!(
                "{:?}: too many {:?}, missing {:?}",
                case.ignore,
                only(&both.0, &both.1),
                only(&both.1, &both.0)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A pattern matched by trying everything: the meaning without regular expressions.
fn naive(pattern: &[char], path: &[char]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', '*', '/', rest @ ..] => {
            naive(rest, path) || (0..path.len()).any(|at| path[at] == '/' && naive(rest, &path[at + 1..]))
        }
        ['*', '*'] => true,
        ['*', rest @ ..] => {
            let reach = path.iter().position(|c| *c == '/').unwrap_or(path.len());
            (0..=reach).any(|at| naive(rest, &path[at..]))
        }
        ['?', rest @ ..] => matches!(path, [c, after @ ..] if *c != '/' && naive(rest, after)),
        [literal, rest @ ..] => matches!(path, [c, after @ ..] if c == literal && naive(rest, after)),
    }
}

/// A walk from the root: what matched a folder holds for all in it, and a pattern that could change nothing is not
/// asked.
fn naive_excludes(patterns: &[(bool, String)], path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let mut held = vec![false; patterns.len()];
    let mut excluded = false;
    for count in 1..=parts.len() {
        let head: Vec<char> = parts[..count].join("/").chars().collect();
        excluded = false;
        for (index, (is_exception, pattern)) in patterns.iter().enumerate() {
            let could_change = *is_exception == excluded;
            held[index] |= could_change && naive(&pattern.chars().collect::<Vec<char>>(), &head);
            if held[index] {
                excluded = !is_exception;
            }
        }
    }
    excluded
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn patterns_mean_what_trying_everything_says(
        patterns in proptest::collection::vec((any::<bool>(), "(\\*\\*/)?[ab*?]{1,3}(/(\\*\\*|[ab*?]{1,2})){0,2}"), 1..5),
        paths in proptest::collection::vec("[abc.]{1,3}(/[abc.]{1,3}){0,3}", 1..10),
    ) {
        // Stars in a row, and `**` that is a part of a name, mean something else to docker; see ignore.json.
        let is_plain = |pattern: &String| pattern.split('/').all(|part| part == "**" || !part.contains("**"));
        let patterns: Vec<(bool, String)> = patterns.into_iter().filter(|(_, pattern)| is_plain(pattern)).collect();
        let line = |(is_exception, pattern): &(bool, String)| format!("{}{pattern}", if *is_exception { "!" } else { "" });
        let text = patterns.iter().map(line).collect::<Vec<_>>().join("\n");
        let ignored = Ignore::parse(&text).unwrap();
        for path in paths.iter().filter(|path| path.split('/').all(|part| !part.trim_matches('.').is_empty())) {
            prop_assert_eq!(ignored.excludes(path), naive_excludes(&patterns, path), "{:?} {}", patterns, path);
        }
    }

    #[test]
    fn any_text_is_an_ignore_file_or_refused(text in "[!#/*?\\[\\]{}|^$\\\\a-c.\\n -]{0,60}|\\PC{0,30}", path in "[abc./]{1,12}") {
        if let Ok(ignored) = Ignore::parse(&text) {
            ignored.excludes(&path);
        }
    }

    #[test]
    fn walking_and_asking_say_the_same(
        lines in proptest::collection::vec("!?(\\*\\*/)?[ab*]{1,2}(/[ab*]{1,2}){0,2}", 0..5),
    ) {
        let ignored = Ignore::parse(&lines.join("\n")).unwrap();
        let paths: Vec<String> = ["a", "b/a", "b/b/a", "ab/b", "aa/a/b/a"].map(str::to_owned).to_vec();
        let folder = tree(&paths);
        let context = Context::open(folder.path(), ignored.clone(), Limits::default()).unwrap();
        let files: Vec<String> = listed(&context).into_iter().filter(|path| paths.contains(path)).collect();
        let mut expected: Vec<String> = paths.into_iter().filter(|path| !ignored.excludes(path)).collect();
        expected.sort();
        prop_assert_eq!(files, expected, "{:?}", lines);
    }
}
