"""Airflow's plugins folder (`[core] plugins_folder`)."""
