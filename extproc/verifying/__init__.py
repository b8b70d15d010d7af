"""The verifier's side of an exchange: one attempt's answer, judged before the client sees it."""
