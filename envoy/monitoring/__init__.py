"""Rules, dashboard and the table of metrics; nothing here is imported by Turnout."""
