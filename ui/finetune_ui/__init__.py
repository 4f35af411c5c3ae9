"""The web page: FineTuneJobs in a browser, with the rights of whoever looks at them."""
