//! Licence expressions as crates declare them (SPDX: `OR`, `AND`, `WITH`, brackets; `/` is an old `OR`).

/// Whether a licensee who accepts only `allowed` may use what is under `expression`.
///
/// # Errors
/// If it is no expression.
pub(crate) fn allows(expression: &str, allowed: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    match parser.either() {
        Some(answer) if parser.words.is_empty() => Ok(answer),
        _ => Err(format!("not a licence expression: {expression}")),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Parser<'_> {
    fn either(&mut self) -> Option<bool> {
        let mut answer = self.both()?;
        while self.take("OR") {
            answer |= self.both()?;
        }
        Some(answer)
    }

    fn both(&mut self) -> Option<bool> {
        let mut answer = self.one()?;
        while self.take("AND") {
            answer &= self.one()?;
        }
        Some(answer)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let answer = self.either()?;
            return self.take(")").then_some(answer);
        }
        let mut name = self.word().filter(|name| !["OR", "AND", "WITH", ")"].contains(&name.as_str()))?;
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.word()?);
        }
        Some(self.allowed.contains(&name))
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.words.first() == Some(&word);
        if there {
            self.words = &self.words[1..];
        }
        there
    }

    fn word(&mut self) -> Option<String> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some((*first).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(expression: &str) -> Result<bool, String> {
        allows(expression, &["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned))
    }

    #[test]
    fn one_allowed_licence_of_several_offered_is_enough() {
        assert_eq!(may("GPL-2.0 OR MIT"), Ok(true));
        assert_eq!(may("Unlicense/MIT"), Ok(true));
        assert_eq!(may("GPL-2.0 OR LGPL-3.0"), Ok(false));
    }

    #[test]
    fn every_licence_required_must_be_allowed() {
        assert_eq!(may("(MIT OR GPL-2.0) AND Unicode-3.0"), Ok(true));
        assert_eq!(may("MIT AND GPL-2.0"), Ok(false));
        assert_eq!(may("MIT OR Zlib AND GPL-2.0"), Ok(true), "AND binds more tightly");
    }

    #[test]
    fn an_exception_makes_another_licence() {
        assert_eq!(may("Apache-2.0 WITH LLVM-exception"), Ok(false));
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for broken in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "AND MIT"] {
            assert!(may(broken).is_err(), "{broken}");
        }
    }
}
