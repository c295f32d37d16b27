"""Messages of other servers' protocols, generated from proto/ by `make proto`; never edited by hand."""
