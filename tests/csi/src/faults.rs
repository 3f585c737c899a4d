//! How a snapshot is asked for: parameters of the VolumeSnapshotClass, over which a control file goes. And the damage
//! that may be done to a finished one.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The sidecar adds parameters of its own under this prefix.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

/// How files get into a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All at one instant.
    #[default]
    Atomic,
    /// One after the other while they are written to, as a plain copy would.
    Torn,
}

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// `CreateSnapshot` never answers.
    Hang,
    /// `CreateSnapshot` answers with an error.
    Fail,
    /// A file is missing from the snapshot.
    DeleteFile,
    /// One byte in the middle of a file is inverted.
    FlipByte,
    /// The second half of a file is gone.
    TruncateFile,
}

/// Everything that a VolumeSnapshotClass can ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotParameters {
    /// Parameter `mode`: `atomic` or `torn`.
    pub mode: Mode,
    /// Parameter `rateMiBPerSecond`: how fast a torn copy is at most; 0 for as fast as it goes.
    pub rate_mib_per_s: u64,
    /// Parameter `readyAfterMs`: how long after the cut a snapshot becomes usable at the earliest, as where it is
    /// uploaded first.
    pub ready_after_ms: i64,
    /// Parameter `fault`.
    pub fault: Fault,
    /// Parameter `faultFile`: the file to damage, by the end of its path; empty for the largest.
    pub fault_file: String,
}

impl SnapshotParameters {
    /// Reads the class's parameters.
    ///
    /// # Errors
    /// When one is unknown or has a value that is not: names both.
    pub fn parse(parameters: &BTreeMap<String, String>) -> Result<Self> {
        let mut parsed = Self::default();
        for (key, value) in parameters {
            let wrong = || format!("parameter {key}: {value}");
            match key.as_str() {
                "mode" => parsed.mode = word(value).with_context(wrong)?,
                "fault" => parsed.fault = word(value).with_context(wrong)?,
                "faultFile" => parsed.fault_file.clone_from(value),
                "rateMiBPerSecond" => parsed.rate_mib_per_s = value.parse().with_context(wrong)?,
                "readyAfterMs" => parsed.ready_after_ms = value.parse().with_context(wrong)?,
                _ if key.starts_with(SIDECAR_PREFIX) => {}
                _ => bail!(
                    "no parameter is called {key}; there are mode, rateMiBPerSecond, readyAfterMs, fault, faultFile"
                ),
            }
        }
        Ok(parsed)
    }
}

fn word<T: serde::de::DeserializeOwned>(value: &str) -> Result<T> {
    Ok(serde_json::from_value(serde_json::Value::from(value))?)
}

/// A file with parameters that go over those of every class while it exists: a JSON object of strings. Its key `volume`
/// keeps it to the snapshots of one volume, by id.
#[derive(Clone, Debug)]
pub struct ControlFile(pub Option<PathBuf>);

impl ControlFile {
    /// The class's parameters with the file's over them.
    ///
    /// # Errors
    /// When the file is there and not understood.
    pub fn over(&self, class: &BTreeMap<String, String>, volume: &str) -> Result<SnapshotParameters> {
        let mut parameters = class.clone();
        if let Some(file) = &self.0
            && let Some(text) = read_if_there(file)?
        {
            let mut over: BTreeMap<String, String> =
                serde_json::from_slice(&text).with_context(|| format!("understand {}", file.display()))?;
            if over.remove("volume").is_none_or(|only| only == volume) {
                parameters.extend(over);
            }
        }
        SnapshotParameters::parse(&parameters)
    }
}

fn read_if_there(file: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// Does the damage that was asked for to the files below `root`, and says which file it was.
///
/// # Errors
/// When there is no such file, or it cannot be changed.
pub fn damage(root: &Path, parameters: &SnapshotParameters) -> Result<Option<PathBuf>> {
    if !matches!(parameters.fault, Fault::DeleteFile | Fault::FlipByte | Fault::TruncateFile) {
        return Ok(None);
    }
    let mut files = Vec::new();
    collect_files(root, &mut files)?;
    // The largest, and the first of equals: the same choice each time.
    files.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let chosen = files.into_iter().find(|(path, _)| path.to_string_lossy().ends_with(&parameters.fault_file));
    let (file, length) = chosen.with_context(|| format!("no file ends in '{}'", parameters.fault_file))?;
    let context = || format!("damage {}", file.display());
    match parameters.fault {
        Fault::DeleteFile => std::fs::remove_file(&file).with_context(context)?,
        Fault::TruncateFile => {
            OpenOptions::new().write(true).open(&file).and_then(|f| f.set_len(length / 2)).with_context(context)?;
        }
        _ => {
            ensure!(length > 0, "{} is empty: there is no byte to flip", file.display());
            let open = OpenOptions::new().read(true).write(true).open(&file).with_context(context)?;
            let mut byte = [0];
            open.read_exact_at(&mut byte, length / 2).with_context(context)?;
            open.write_all_at(&[!byte[0]], length / 2).with_context(context)?;
        }
    }
    Ok(Some(file))
}

fn collect_files(folder: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect_files(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn parameters_are_read_and_unknown_ones_are_named() {
        let torn = parameters(&[("mode", "torn"), ("rateMiBPerSecond", "3"), ("csi.storage.k8s.io/x", "y")]);
        let parsed = SnapshotParameters::parse(&torn).unwrap();
        assert_eq!((parsed.mode, parsed.rate_mib_per_s, parsed.fault), (Mode::Torn, 3, Fault::None));
        for (key, value) in [("mode", "both"), ("fualt", "hang"), ("readyAfterMs", "soon")] {
            let error = SnapshotParameters::parse(&parameters(&[(key, value)])).unwrap_err();
            assert!(format!("{error:#}").contains(key), "{error:#}");
        }
    }

    #[test]
    fn the_control_file_goes_over_the_class_for_the_volume_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("faults.json");
        let control = ControlFile(Some(file.clone()));
        let class = parameters(&[("mode", "torn")]);
        assert_eq!(control.over(&class, "volume-1").unwrap().fault, Fault::None);
        std::fs::write(&file, r#"{"fault": "hang", "volume": "volume-1"}"#).unwrap();
        let over = control.over(&class, "volume-1").unwrap();
        assert_eq!((over.mode, over.fault), (Mode::Torn, Fault::Hang));
        assert_eq!(control.over(&class, "volume-2").unwrap().fault, Fault::None);
        std::fs::write(&file, "{").unwrap();
        assert!(control.over(&class, "volume-1").is_err());
    }

    #[test]
    fn damage_is_done_to_the_file_asked_for_and_to_no_other() {
        for (fault, expected) in
            [("delete-file", None), ("flip-byte", Some(vec![1, 2, !3, 4])), ("truncate-file", Some(vec![1, 2]))]
        {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("in")).unwrap();
            std::fs::write(folder.path().join("in/small"), [1, 2, 3, 4]).unwrap();
            std::fs::write(folder.path().join("large"), [0; 100]).unwrap();
            let asked = parameters(&[("fault", fault), ("faultFile", "in/small")]);
            let done = damage(folder.path(), &SnapshotParameters::parse(&asked).unwrap()).unwrap().unwrap();
            assert_eq!(std::fs::read(done).ok(), expected, "{fault}");
            assert_eq!(std::fs::read(folder.path().join("large")).unwrap(), [0; 100]);
            let largest = damage(folder.path(), &SnapshotParameters::parse(&parameters(&[("fault", fault)])).unwrap());
            assert!(largest.unwrap().unwrap().ends_with("large"));
        }
    }
}
