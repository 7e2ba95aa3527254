//! Checks that the documents and the repository agree.
//!
//! Every file, link, test and command that a document names must exist, documents keep to their
//! length and width, and crates depend on each other only along the arrows of the layout.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Columns at which Markdown wraps, outside tables and code blocks.
const MAX_COLUMNS: usize = 100;

/// The README has fewer lines than this.
const README_LINES: usize = 200;

/// The README has at most this many words.
const README_WORDS: usize = 2000;

/// The guide for contributors has fewer lines than this.
const CONTRIBUTING_LINES: usize = 60;

/// Extensions by which a code span without a folder is recognised as a file of this repository.
const EXTENSIONS: [&str; 9] = ["rs", "c", "h", "S", "sh", "md", "toml", "txt", "ld"];

/// Which crates a crate may depend on. A package that is not listed may depend on all of them, and
/// none of them on it.
const ARROWS: [(&str, &[&str]); 7] = [
    ("protocol", &[]),
    ("host", &[]),
    ("devices", &[]),
    ("steal-time", &["host", "protocol"]),
    ("vmm", &["steal-time", "devices", "host", "protocol"]),
    ("lab", &["vmm", "steal-time", "host", "protocol"]),
    ("guest-payload", &["protocol"]),
];

/// Returns the root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the text of the file at `path`, relative to the root.
fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns all files below `folder`, relative to the root, without build output and hidden folders.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("the folder can be read") {
        let entry = entry.expect("the folder can be read");
        let (path, name) = (folder.join(entry.file_name()), entry.file_name());
        let is_hidden = name.to_string_lossy().starts_with('.');
        if !entry.file_type().expect("an entry has a type").is_dir() {
            files.push(path);
        } else if !is_hidden && name != "target" {
            files.extend(files_below(&path));
        }
    }
    files
}

/// Returns the Markdown files of the repository, relative to the root.
fn documents() -> Vec<PathBuf> {
    let mut files = files_below(Path::new(""));
    files.retain(|file| file.extension() == Some(OsStr::new("md")));
    files
}

/// Returns the lines of a Markdown text outside code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_block = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    })
}

/// Returns the text of a document outside code blocks.
fn prose_of(document: &Path) -> String {
    prose(&read(document)).map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}

/// Fails with all `problems`, if there are any.
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Returns the code spans of a Markdown text.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the tests that the specification names: a file, relative to the root, and a function.
fn references(specification: &str) -> impl Iterator<Item = (String, &str)> {
    code_spans(specification).filter_map(|span| {
        let (file, test) = span.split_once(".rs: ")?;
        // Integration tests are named without their folder.
        let folder = if file.contains("/src/") { "" } else { "tests/" };
        Some((format!("{folder}{file}.rs"), test))
    })
}

/// Whether `source` has the test `name`, itself or as the argument of a macro that makes tests.
fn has_test(source: &str, name: &str) -> bool {
    if source.contains("#[test]\n        fn $") && source.contains(&format!("\n    {name}: ")) {
        return true;
    }
    source.split_once(&format!("fn {name}()")).is_some_and(|(before, _)| {
        let mut attributes =
            before.trim_end().rsplit('\n').map(str::trim).take_while(|line| line.starts_with("#["));
        attributes.any(|line| line == "#[test]")
    })
}

#[test]
fn tests_that_the_specification_names_exist() {
    let (mut count, mut problems) = (0, Vec::new());
    for document in ["resources/spec.md", "resources/reports.md"] {
        for (file, test) in references(&read(document)) {
            let source = fs::read_to_string(root().join(&file)).unwrap_or_default();
            if !has_test(&source, test) {
                problems.push(format!("{file} has no test {test}, which {document} names"));
            }
            count += 1;
        }
    }
    assert_none(&problems);
    assert!(count > 80, "only {count} tests are named: has the notation changed?");
}

/// Returns the items of a numbered list.
///
/// # Panics
/// If the numbers have a gap.
fn numbered(text: &str) -> Vec<String> {
    let number = |line: &str| line.split_once(". ")?.0.parse::<usize>().ok();
    let mut items: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(number) = number(line) {
            items.push(String::new());
            assert_eq!(number, items.len(), "{line}");
        }
        if let Some(item) = items.last_mut() {
            item.push_str(line);
        }
    }
    items
}

#[test]
fn each_of_the_36_reports_names_its_test_or_why_there_is_none() {
    let reports = numbered(&read("resources/reports.md"));
    assert_eq!(reports.len(), 36);
    for report in reports {
        assert_ne!(report.contains(".rs: "), report.contains("Not here: "), "{report}");
    }
}

#[test]
fn promises_of_the_specification_are_numbered_without_a_gap_and_each_names_what_holds_it() {
    let promises = numbered(&read("resources/spec.md"));
    assert!(promises.len() > 30, "only {} promises: has the notation changed?", promises.len());
    for promise in promises {
        assert!(promise.contains(".rs: "), "no test is named: {promise}");
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

/// Returns the anchor that a heading gets: lower case, without punctuation, hyphens for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns what is wrong with a link from a document in `folder`, if anything is.
fn broken_link(document: &Path, target: &str) -> Option<String> {
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    let folder = document.parent().expect("a file lies in a folder");
    let path = if file.is_empty() { document.to_owned() } else { folder.join(file) };
    if !root().join(&path).exists() {
        return Some(format!("{} leads to {target}", document.display()));
    }
    if fragment.is_empty() {
        return None;
    }
    let linked = read(&path);
    let mut headings = linked.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let exists = headings.any(|heading| anchor(heading) == fragment);
    (!exists).then(|| format!("{} leads to {target}, and there is no such heading", document.display()))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut problems = Vec::new();
    for document in documents() {
        let prose = prose_of(&document);
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let own = targets.filter(|target| !target.starts_with("http"));
        problems.extend(own.filter_map(|target| broken_link(&document, target)));
    }
    assert_none(&problems);
}

/// Whether a line cannot be wrapped: a table's row, or a code span or a link that stands alone.
fn cannot_wrap(line: &str) -> bool {
    let text = line.trim().trim_end_matches([',', '.']);
    let is_span = text.starts_with('`') && text.ends_with('`') && text.matches('`').count() == 2;
    let is_link = text.starts_with('[') && text.ends_with(')') && text.matches("](").count() == 1;
    line.starts_with('|') || is_span || is_link
}

#[test]
fn documents_keep_to_their_length_and_width() {
    let readme = read("README.md");
    let (lines, words) = (readme.lines().count(), readme.split_whitespace().count());
    assert!(lines < README_LINES, "README.md has {lines} lines");
    assert!(words <= README_WORDS, "README.md has {words} words");
    let lines = read("CONTRIBUTING.md").lines().count();
    assert!(lines < CONTRIBUTING_LINES, "CONTRIBUTING.md has {lines} lines");
    let mut problems = Vec::new();
    for document in documents() {
        for (number, line) in prose(&read(&document)) {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS && !cannot_wrap(line) {
                problems.push(format!("{}:{number} has {columns} columns", document.display()));
            }
        }
    }
    assert_none(&problems);
}

/// The names by which documents may mean files.
struct Names {
    /// Names of all files, without their folders.
    files: BTreeSet<OsString>,
    /// Names of what lies in the root.
    top: BTreeSet<String>,
}

impl Names {
    fn of_the_repository() -> Self {
        let files = files_below(Path::new(""));
        let entries = fs::read_dir(root()).expect("the root can be read");
        let top = entries.map(|entry| entry.expect("the root can be read").file_name());
        Self {
            files: files.iter().filter_map(|file| file.file_name()).map(OsStr::to_owned).collect(),
            top: top
                .map(|name| name.to_string_lossy().into_owned())
                .filter(|name| name != "target")
                .collect(),
        }
    }

    /// Whether a code span means a file or a folder of this repository.
    fn are_meant_by(&self, span: &str) -> bool {
        let is_pattern = span.contains(|c: char| c.is_whitespace() || "*$<>{}()=".contains(c));
        let is_foreign = span.starts_with(['/', '-', '.']) || span.starts_with("Documentation/");
        let extension = Path::new(span).extension();
        let is_source = extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known));
        let begins_in_the_root = span.split_once('/').is_some_and(|(first, _)| self.top.contains(first));
        !is_pattern && !is_foreign && (is_source || begins_in_the_root)
    }

    /// Whether the file exists that a document in `folder` names. A name without a folder may mean
    /// any file; other names are relative to the root, the document, or the tests.
    fn exist(&self, span: &str, folder: &Path) -> bool {
        let bases = [Path::new(""), folder, Path::new("tests")];
        let lies_below = |base: &Path| root().join(base).join(span).exists();
        if span.contains('/') {
            bases.into_iter().any(lies_below)
        } else {
            self.files.contains(OsStr::new(span))
        }
    }
}

#[test]
fn files_that_documents_name_exist() {
    let names = Names::of_the_repository();
    let (mut count, mut problems) = (0, Vec::new());
    for document in documents() {
        let folder = document.parent().expect("a file lies in a folder");
        let prose = prose_of(&document);
        for span in code_spans(&prose).filter(|span| names.are_meant_by(span)) {
            if !names.exist(span, folder) {
                problems.push(format!("{} names {span}", document.display()));
            }
            count += 1;
        }
    }
    assert_none(&problems);
    assert!(count > 30, "only {count} files are named: has the notation changed?");
}

/// Counts the lines of source at `path`, without tests that lie in files of their own.
fn lines_of_source(path: &Path) -> usize {
    let files = if root().join(path).is_dir() { files_below(path) } else { vec![path.to_owned()] };
    let is_source = |file: &&PathBuf| {
        let is_test =
            file.iter().any(|part| part == "tests") || file.file_stem() == Some(OsStr::new("tests"));
        !is_test
            && file
                .extension()
                .is_some_and(|extension| ["rs", "c", "h", "S"].iter().any(|known| extension == *known))
    };
    let lines = |file| fs::read_to_string(root().join(file)).map_or(0, |text| text.lines().count());
    files.iter().filter(is_source).map(lines).sum()
}

#[test]
fn line_counts_of_the_reading_order_are_within_a_tenth() {
    let readme = read("README.md");
    let (_, table) = readme.split_once("\n| stop | lines | what |\n").expect("README.md has a reading order");
    let (mut stops, mut problems) = (0, Vec::new());
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let claimed = cells[2].replace(',', "").parse::<usize>().unwrap_or(0);
        let (mut lines, mut folder) = (0, PathBuf::new());
        for span in code_spans(cells[1]) {
            // A name without a folder lies beside the one before it.
            let path = if span.contains('/') { PathBuf::from(span) } else { folder.join(span) };
            folder = path.parent().expect("a path has a folder").to_owned();
            lines += lines_of_source(&path);
        }
        if lines == 0 || lines.abs_diff(claimed) * 10 > lines {
            problems.push(format!("README.md gives {claimed} lines for {}, which has {lines}", cells[1]));
        }
        stops += 1;
    }
    assert_none(&problems);
    assert!(stops >= 5, "only {stops} stops: has the notation changed?");
}

#[test]
fn crates_depend_on_each_other_only_along_the_arrows_of_the_layout() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    let mut problems: Vec<String> = (ARROWS.iter().filter(|(member, _)| !members.contains(*member)))
        .map(|(member, _)| format!("there is no crate {member}"))
        .collect();
    for package in &packages {
        let from = name(package);
        let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == from) else { continue };
        let own = list(&package["dependencies"])
            .iter()
            .map(name)
            .filter(|to| members.contains(to))
            .collect::<Vec<_>>();
        let forbidden = own.iter().filter(|to| !allowed.contains(&to.as_str()));
        problems.extend(forbidden.map(|to| format!("{from} depends on {to}")));
    }
    assert_none(&problems);
}
