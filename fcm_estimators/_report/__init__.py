"""What :func:`fcm_estimators.report.write_report` is made of: tables, cells, gates, the page."""
