"""(the founder is writing this file now)"""
