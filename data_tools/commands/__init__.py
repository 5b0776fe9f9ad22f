"""One module per `headwater data` command: `add_arguments(parser)` and `run(arguments)`."""
