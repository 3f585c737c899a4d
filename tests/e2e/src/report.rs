//! `target/reports/NAME.json`: what a command measured, for machines; people read what it prints.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes a report and returns nothing but errors.
///
/// # Errors
/// When the folder cannot be made or the file not written.
pub fn write(name: &str, report: &impl serde::Serialize) -> Result<()> {
    let folder = Path::new("target/reports");
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let file = folder.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))
}
