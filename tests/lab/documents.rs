//! The documents, held to the repository: what they name must exist.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so and fails"
)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The specification's references: a file with tests, and the name of one.
fn references(specification: &str) -> impl Iterator<Item = (String, &str)> {
    quoted(specification).filter_map(|quoted| {
        let (file, test) = quoted.split_once(".rs: ")?;
        // Integration tests are named without their folder.
        let folder = if file.contains("/src/") { "" } else { "tests/" };
        Some((format!("{folder}{file}.rs"), test))
    })
}

#[test]
fn tests_that_the_specification_names_exist() {
    let specification = read("resources/spec.md");
    let mut count = 0;
    for (file, test) in references(&specification) {
        let source = read(&file);
        // Some are made by a macro, of which the name is an argument.
        let made = source.contains("#[test]\n        fn $") && source.contains(&format!("\n    {test}: "));
        if !made {
            let (before, _) = source
                .split_once(&format!("fn {test}()"))
                .unwrap_or_else(|| panic!("{file} has no test {test}, which resources/spec.md names"));
            let mut attributes =
                before.trim_end().rsplit('\n').map(str::trim).take_while(|line| line.starts_with("#["));
            assert!(attributes.any(|line| line == "#[test]"), "{file}: {test} is no test");
        }
        count += 1;
    }
    assert!(count > 50, "only {count} tests are named: has the notation changed?");
}

#[test]
fn promises_of_the_specification_are_numbered_without_a_gap_and_each_names_what_holds_it() {
    let specification = read("resources/spec.md");
    let number = |line: &str| line.split_once(". ")?.0.parse::<usize>().ok();
    let mut promises: Vec<String> = Vec::new();
    for line in specification.lines() {
        if let Some(number) = number(line) {
            promises.push(String::new());
            assert_eq!(number, promises.len(), "{line}");
        }
        if let Some(promise) = promises.last_mut() {
            promise.push_str(line);
        }
    }
    assert!(promises.len() > 30, "only {} promises: has the notation changed?", promises.len());
    for promise in promises {
        assert!(
            promise.contains(".rs: ") || promise.contains("The same test"),
            "nothing holds this: {promise}"
        );
    }
}

#[test]
fn gate_runs_the_commands_of_the_readme() {
    let (readme, gate) = (read("README.md"), read(".ci/run"));
    for command in ["cargo run --release", "cargo test --workspace"] {
        assert!(readme.lines().any(|line| line.trim() == command), "README.md does not name `{command}`");
        assert!(gate.contains(command), ".ci/run does not run `{command}`");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in ["README.md", "resources/design.md", "resources/spec.md"] {
        let text = read(document);
        let folder = root().join(document).parent().expect("a file lies in a folder").to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let is_foreign = target.starts_with("http") || target.starts_with('#');
            let file = target.split('#').next().unwrap_or(target);
            assert!(is_foreign || folder.join(file).exists(), "{document} leads to {target}");
        }
    }
}
