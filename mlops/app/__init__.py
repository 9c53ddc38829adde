"""Streamlit pages; they read and show, and decide nothing."""
