//! QEMU's texts for input that is no QMP, and our own beside them. Those about commands' arguments and migrations stand with
//! the wire's (`whimbrel_wire::qemu_texts`).

/// Wraps what the parser says.
pub(crate) fn json_parse_error(text: &str) -> String {
    format!("JSON parse error, {text}")
}

/// A bare word that means nothing.
pub(crate) fn invalid_keyword(word: &str) -> String {
    format!("invalid keyword '{word}'")
}

/// Bytes that start or continue no token.
pub(crate) fn stray(text: &str) -> String {
    format!("stray '{text}'")
}

/// A `\u` that is no character; `digits` as they were written.
pub(crate) fn invalid_unicode(digits: &str) -> String {
    format!("\\u{digits} is not a valid Unicode character")
}

/// A mark, or the end, where a value has to stand.
pub(crate) const EXPECTING_VALUE: &str = "expecting value";
/// No `:` after a key.
pub(crate) const MISSING_COLON: &str = "missing : in object pair";
/// A key that is no string.
pub(crate) const KEY_NOT_A_STRING: &str = "key is not a string in object";
/// A key that stands twice.
pub(crate) const DUPLICATE_KEY: &str = "duplicate key";
/// Neither `,` nor `}`.
pub(crate) const SEPARATOR_IN_DICT: &str = "expected separator in dict";
/// Neither `,` nor `]`.
pub(crate) const SEPARATOR_IN_LIST: &str = "expected separator in list";
/// A string that is not UTF-8.
pub(crate) const INVALID_UTF8: &str = "invalid UTF-8 sequence in string";
/// A backslash before something that it doesn't go with.
pub(crate) const INVALID_ESCAPE: &str = "invalid escape sequence in string";
/// Our own: QEMU reads infinity.
pub(crate) const NUMBER_OUT_OF_RANGE: &str = "number out of range";
/// A message of too many bytes.
pub(crate) const SIZE_LIMIT: &str = "JSON token size limit exceeded";
/// A message of too many tokens.
pub(crate) const TOKEN_LIMIT: &str = "JSON token count limit exceeded";
/// A message nested too deeply.
pub(crate) const NESTING_LIMIT: &str = "JSON nesting depth limit exceeded";

/// A message without a command.
pub(crate) const LACKS_EXECUTE: &str = "QMP input lacks member 'execute'";
/// Both kinds of command in one message.
pub(crate) const EXECUTE_CLASHES: &str = "QMP input member 'execute' clashes with 'exec-oob'";
/// `arguments` of another type.
pub(crate) const ARGUMENTS_NOT_AN_OBJECT: &str = "QMP input member 'arguments' must be an object";

/// A command's name of another type; `member` is `execute` or `exec-oob`.
pub(crate) fn command_not_a_string(member: &str) -> String {
    format!("QMP input member '{member}' must be a string")
}
