use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A folder with a file `old` of mode 640.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    fs::write(&old, "old").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
    (folder, old)
}

fn names(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = folder.path().read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn refusal(path: &Path) -> String {
    host::error_chain::one_line(&OutputFile::open(path).unwrap_err())
}

#[test]
fn file_in_a_missing_folder_is_refused_before_the_measurement() {
    let refusal = refusal(Path::new("/nowhere/at/all.json"));
    assert!(refusal.starts_with("Cannot write /nowhere/at/all.json: No such file"), "{refusal}");
    for folder in ["/", ".", ".."] {
        assert!(OutputFile::open(Path::new(folder)).is_err(), "{folder}");
    }
}

#[test]
fn file_that_is_opened_and_not_written_changes_nothing() {
    let (folder, old) = folder();
    drop(OutputFile::open(&old).unwrap());
    drop(OutputFile::open(&folder.path().join("new")).unwrap());
    assert_eq!(names(&folder), ["old"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), "old");
}

#[test]
fn written_file_replaces_the_old_one_with_its_permissions() {
    let (folder, old) = folder();
    let kept = File::open(&old).unwrap();
    OutputFile::open(&old).unwrap().write(&[1, 2]).unwrap();
    assert_eq!(names(&folder), ["old"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), "[\n  1,\n  2\n]\n");
    assert_eq!(fs::metadata(&old).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(io::read_to_string(kept).unwrap(), "old", "a reader of the old file keeps it whole");

    let new = folder.path().join("new");
    OutputFile::open(&new).unwrap().write_bytes(b"new").unwrap();
    assert_eq!(fs::read_to_string(&new).unwrap(), "new");
    assert_eq!(names(&folder), ["new", "old"]);
}

#[test]
fn file_that_another_process_creates_meanwhile_is_replaced() {
    let (folder, _) = folder();
    let new = folder.path().join("new");
    let output = OutputFile::open(&new).unwrap();
    fs::write(&new, "theirs").unwrap();
    output.write_bytes(b"ours").unwrap();
    assert_eq!(fs::read_to_string(&new).unwrap(), "ours");
    assert_eq!(names(&folder), ["new", "old"]);
}

#[test]
fn symbolic_link_is_refused_with_its_target_and_both_stay_as_they_were() {
    let (folder, old) = folder();
    for (name, target) in [("link", old.as_path()), ("dangling", Path::new("/nowhere/at/all"))] {
        let link = folder.path().join(name);
        symlink(target, &link).unwrap();
        let refusal = refusal(&link);
        assert!(
            refusal.contains("symbolic link to") && refusal.contains(target.to_str().unwrap()),
            "{refusal}"
        );
        assert_eq!(fs::read_link(&link).unwrap(), target);
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "old");
}

#[test]
fn link_that_takes_the_place_meanwhile_is_replaced_and_not_followed() {
    let (folder, old) = folder();
    let place = folder.path().join("place");
    let output = OutputFile::open(&place).unwrap();
    symlink(&old, &place).unwrap();
    output.write_bytes(b"new").unwrap();
    assert!(fs::symlink_metadata(&place).unwrap().is_file());
    assert_eq!(fs::read_to_string(&old).unwrap(), "old");
}

#[test]
fn folder_that_is_renamed_meanwhile_receives_the_file() {
    let (folder, _) = folder();
    let [before, after] = ["before", "after"].map(|name| folder.path().join(name));
    fs::create_dir(&before).unwrap();
    let output = OutputFile::open(&before.join("new")).unwrap();
    fs::rename(&before, &after).unwrap();
    output.write_bytes(b"new").unwrap();
    assert_eq!(fs::read_to_string(after.join("new")).unwrap(), "new");
}

#[test]
fn two_results_for_one_file_are_refused_and_for_one_device_are_not() {
    let (folder, old) = folder();
    let new = folder.path().join("new");
    let roundabout = folder.path().join("../").join(folder.path().file_name().unwrap()).join("old");
    for (first, second) in [(&old, &old), (&new, &new), (&old, &roundabout)] {
        let error = OutputFile::open_all([Some(first), Some(second)]).unwrap_err();
        assert!(host::error_chain::one_line(&error).contains("two kinds of results"), "{error:?}");
    }
    let [json, trace] = OutputFile::open_all([Some(&old), Some(&new)]).unwrap();
    assert!(json.is_some() && trace.is_some());
    let null = Path::new("/dev/null");
    assert!(OutputFile::open_all([Some(null), Some(null)]).is_ok());
    assert!(matches!(OutputFile::open_all([None, Some(null)]).unwrap(), [None, Some(_)]));
}
