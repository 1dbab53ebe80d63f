//! Runs written down.

/// Plays a script.
///
/// # Errors
/// A text that says what has no meaning.
pub fn play(_text: &str) -> Result<String, String> {
    Err("not yet".to_owned())
}
