"""Pages for people in a browser: the API's documentation and the playground."""
